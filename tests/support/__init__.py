"""What tests share. No test lives here."""
