"""Files on local disk, S3 and other stores, with errors translated and writes atomic."""
