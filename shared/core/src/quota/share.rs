//! Sharing what is left among those who ask: max-min fair, in whole permits.

/// Gives each wish its part of `available`: small wishes in full, large ones the same. Permits that cannot be split
/// go to the wishes from `turn` on, which the caller moves, so that nobody is always first.
pub fn share(wishes: &[u64], available: u64, turn: usize) -> Vec<u64> {
    let mut given = vec![0; wishes.len()];
    let mut open: Vec<usize> = (0..wishes.len()).filter(|&i| wishes[i] > 0).collect();
    if open.is_empty() {
        return given;
    }
    let shift = turn % open.len();
    open.rotate_left(shift);
    // The turn decides among equals only: smaller wishes come first.
    open.sort_by_key(|&i| wishes[i]);
    let mut left = available;
    let waiting = open.len();
    for (before, &i) in open.iter().enumerate() {
        let others = (waiting - before) as u64;
        given[i] = wishes[i].min(left.div_ceil(others));
        left -= given[i];
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_wishes_are_met_and_large_ones_get_the_same() {
        assert_eq!(share(&[2, 100, 100], 22, 0), [2, 10, 10]);
        assert_eq!(share(&[5, 5], 100, 0), [5, 5]);
        assert_eq!(share(&[0, 7], 3, 0), [0, 3]);
        assert_eq!(share(&[], 3, 0), Vec::<u64>::new());
    }

    #[test]
    fn what_cannot_be_split_goes_round() {
        let firsts: Vec<usize> = (0..3)
            .map(|turn| share(&[9, 9, 9], 1, turn).iter().position(|given| *given == 1).unwrap())
            .collect();
        assert_eq!(firsts, [0, 1, 2]);
    }

    #[test]
    fn nothing_is_made_up_and_nothing_is_kept_back() {
        for available in 0..40 {
            for turn in 0..4 {
                let wishes = [3, 11, 1, 8];
                let given = share(&wishes, available, turn);
                assert_eq!(given.iter().sum::<u64>(), available.min(wishes.iter().sum()));
                assert!(given.iter().zip(wishes).all(|(given, wish)| *given <= wish));
            }
        }
    }
}
