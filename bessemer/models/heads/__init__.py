"""What reads the trunk's hidden states beside the one head every model has."""
