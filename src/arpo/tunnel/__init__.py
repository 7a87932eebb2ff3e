"""The way from a machine that nobody can reach (a Mac) into the cluster: one ssh connection that is kept."""
