"""Navigation inside one long video: a tree of clips, tools that look into it, and a budget of calls."""
