"""What a study means, typed and checked before anything runs; imports no torch."""
