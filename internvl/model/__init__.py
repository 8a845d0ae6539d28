"""The model: the closed checkpoint code, loading, adapters and merging."""
