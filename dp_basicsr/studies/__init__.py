"""The paper's studies (Tables 2 to 7): declare, train and test them, and compare with the paper's numbers."""
