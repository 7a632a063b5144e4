"""What a weight file is: its contents, whose learner or which network, and what would not convert. NumPy only."""
