"""The cluster on Google Cloud: variables, checks and scripts."""
