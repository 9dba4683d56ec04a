"""What users get under each policy, and who wins duels, where nodes, sockets and engines are real."""
