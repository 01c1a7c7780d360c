"""What a person reads: the record, the page, the model card, the plots."""
