"""Advantages and losses as pure functions, and the learner that steps on them.

The ranks' rule. A call of a module of the policy may be a collective: under ZeRO-3 its weights are gathered from all
ranks in the forward pass and again in the backward pass. So in each pass all ranks call the same modules, as often and
in the same order, forward and backward, whatever their examples are; a rank that leaves one out, or calls one more,
waits for ever. Therefore:

- a module is called once a pass, on all rows together, not once a row, clip or chunk;
- what a rank has no use for is called all the same, on a stand-in (a blank clip, the first row's latents), and enters
  the loss with weight zero, so that its backward pass is there too;
- all ranks make as many passes a step as the one that needs most, and all gather when one needs whole weights.
"""
