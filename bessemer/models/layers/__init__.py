"""The parts families are built of. Each names its parameters' logical axes and roles; none knows of devices or meshes."""
