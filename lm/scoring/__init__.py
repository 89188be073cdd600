"""What a trained model is used for: exact evaluation, adaptation, scoring, sampling, looking inside, export."""
