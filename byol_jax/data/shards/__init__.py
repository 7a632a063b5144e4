"""Files that hold many images each: how they are found, and what is in those of each kind."""
