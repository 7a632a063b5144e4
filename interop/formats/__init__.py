"""One file a format: what may be in it, how it is read and written. `interop.files` chooses between them."""
