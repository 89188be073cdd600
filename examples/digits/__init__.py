"""What is said about activation penalties, measured on scikit-learn's digits in minutes; see results/digits/."""
