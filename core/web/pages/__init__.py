"""The pages of the service for people. Each page calls the same operations as the API, and shows the answer as HTML."""
