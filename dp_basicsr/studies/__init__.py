"""The paper's studies (Tables 2 to 7): declared in options/studies, trained, tested, set beside the paper's numbers."""
