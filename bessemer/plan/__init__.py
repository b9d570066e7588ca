"""What a recipe would take, before anything is started."""
