"""What comes from outside and is not believed: messages of peers, their rows and addresses, answers, votes, and keys of users."""
