"""OpenAI's Files and Batch API: files into the blob store, questions to the offline queue."""
