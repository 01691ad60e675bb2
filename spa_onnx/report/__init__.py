"""Reports as tables on the console, as plain data and as an HTML page."""
