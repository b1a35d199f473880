"""From bare heavy atoms to finished molecules: bonds, hydrogens, relaxation."""
