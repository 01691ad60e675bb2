"""Dense linear algebra, and the Optimal Brain Surgeon on top of it."""
