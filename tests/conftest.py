"""Its place in tests/ puts that folder on the path, so that tests in subfolders find the nets and the law."""
