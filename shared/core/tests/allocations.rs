//! A choice allocates nothing, however many keys are dead.

use std::sync::Arc;

use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::select::{FULL_SHARE, Gates, Lane, Seat, Want};
use keyfleet_core::time::Mono;

fn lane(keys: u32) -> Lane {
    let (model, egress) = (Arc::new(Breaker::default()), Arc::new(Breaker::default()));
    let seat = |key| Seat {
        key,
        project: key,
        share: FULL_SHARE,
        dial: Arc::default(),
        gates: Gates {
            key: Arc::default(),
            key_model: Gate::default(),
            bucket: Arc::default(),
            project: Arc::default(),
            model: model.clone(),
            egress: egress.clone(),
        },
    };
    Lane::new(vec![(0..keys).map(seat).collect()], 7)
}

#[test]
fn choosing_allocates_nothing() {
    let lane = lane(1_500);
    let now = Mono::from_ms(1);
    for seat in lane.seats().iter().skip(30) {
        seat.gates.key.close(Mono::FOREVER, None);
    }
    let counted = allocation_counter::measure(|| {
        for _ in 0..10_000 {
            assert!(lane.select(&Want::default(), 0, now).is_ok());
        }
        for seat in lane.seats() {
            seat.gates.key.close(Mono::FOREVER, None);
        }
        assert!(lane.select(&Want::default(), 0, now).is_err());
    });
    assert_eq!(counted.count_total, 0);
}
