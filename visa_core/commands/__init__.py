"""What the commands of `visa` do, one file a command; their options stand in options.py."""
