"""What a person starts: data construction, training, evaluation, serving and the command line."""
