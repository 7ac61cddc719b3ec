"""Score gradient-boosted trees and a constant prediction."""
