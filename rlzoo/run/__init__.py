"""The one training loop, and the record that it keeps."""
