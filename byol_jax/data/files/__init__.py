"""Images that lie in files, or within shards: listed, looked through once, remembered, decoded by number."""
