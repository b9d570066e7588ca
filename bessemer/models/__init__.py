"""Batch -> Outputs. Layers, families built of them, heads beside them, and the way to and from Hugging Face. No meshes here."""
