"""Dense linear algebra, and the Optimal Brain Surgeon, which is built on it."""
