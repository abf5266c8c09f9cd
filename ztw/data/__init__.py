"""Images: found, checked, decoded once, and fed to a network."""
