"""The synthetic dataset of the tiny models: scenes, their captions, and the judges that read
them."""
