//! Every interleaving of those who draw from a lot and the one who closes it.

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[expect(dead_code, reason = "the methods that only look are of no interest here")]
#[expect(unreachable_pub, reason = "it is public where it belongs")]
#[path = "../src/quota/lot.rs"]
mod lot;

use loom::sync::Arc;
use loom::thread;

use lot::Permits;

/// One that draws, gives back and draws again, while another reports and then closes.
#[test]
fn what_came_back_and_was_drawn_again_is_told() {
    loom::model(|| {
        let lot = Arc::new(Permits::new(1));
        let drawer = {
            let lot = lot.clone();
            thread::spawn(move || {
                let back = lot.draw(1).is_none_or(|round| lot.give_back(1, round));
                u64::from(!back) + u64::from(lot.draw(1).is_some())
            })
        };
        let before = lot.tally();
        let last = lot.close().unwrap();
        let kept = drawer.join().unwrap();
        assert_eq!(last.drawn - last.given_back, kept);
        assert!(last.drawn >= before.drawn && last.given_back >= before.given_back, "counts only grow");
        assert!(lot.close().is_none() && lot.draw(1).is_none(), "closed is closed");
    });
}

/// Two that draw while it is closed: nobody gets what another has, and every draw is told.
#[test]
fn every_draw_before_the_close_is_told() {
    loom::model(|| {
        let lot = Arc::new(Permits::new(1));
        let draw = |lot: Arc<Permits>| thread::spawn(move || u64::from(lot.draw(1).is_some()));
        let (first, second) = (draw(lot.clone()), draw(lot.clone()));
        let last = lot.close().unwrap();
        let kept = first.join().unwrap() + second.join().unwrap();
        assert_eq!(last.drawn, kept);
        assert!(kept <= 1);
    });
}
