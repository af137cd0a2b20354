"""`vsr1 replay`: a recorded trajectory again, stage by stage, and the first stage that differs."""
