"""The training loop, and searches and transfers as its steps. Must not know which engine shards."""
