"""The commands: argument parsing and what is printed, over the packages that do the work. ``tools/`` calls them."""
