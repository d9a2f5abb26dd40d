"""What files of tokenizers hold beyond what the installed tokenizers library reads, and how it is read all the same."""
