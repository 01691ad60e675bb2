"""Reports: tables on the console, plain data, one HTML page."""
