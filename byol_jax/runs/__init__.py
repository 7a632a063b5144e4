"""A run: its folder, what lies in it, what it reads, and what a person sees of it while it goes on."""
