"""From images to an answer: the same code for test, locate, serve and Python."""
