"""How packed tokens lie on disk for other trainers: one file per format."""
