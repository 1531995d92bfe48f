//! A consumer that is warm: so much was applied that it takes as many messages at once as it may.

use std::cell::Cell;

use super::{Scene, Trouble};

/// Orders after which groups and batches are large.
const WARM: usize = 100;

/// Publishes what warms it.
pub(crate) fn publish_warmth(scene: &Scene) {
    for n in 0..WARM {
        scene.publish("warm", &format!("w{n}"), Trouble::None);
    }
}

/// Publishes what is tested once it is warm, and says when everything is settled and `done` agrees.
pub(crate) fn once_warm(
    publish: impl Fn(&Scene),
    done: impl Fn(&Scene, &[String]) -> bool,
) -> impl Fn(&Scene) -> bool {
    let published = Cell::new(false);
    move |scene| {
        if scene.store.applied().len() == WARM && !published.replace(true) {
            publish(scene);
        }
        published.get() && scene.settled() && done(scene, &applied(scene))
    }
}

/// What was applied after the beginning.
pub(crate) fn applied(scene: &Scene) -> Vec<String> {
    scene.store.applied().split_off(WARM)
}

/// Messages of two keys, of which one is in trouble.
pub(crate) fn publish_around(trouble: Trouble) -> impl Fn(&Scene) {
    move |scene| {
        for n in 0..5 {
            scene.publish("a", &format!("a{n}"), if n == 2 { trouble } else { Trouble::None });
            scene.publish("b", &format!("b{n}"), Trouble::None);
        }
    }
}

/// What was applied of one key, in its order.
pub(crate) fn of_key<'a>(applied: &'a [String], key: &str) -> Vec<&'a str> {
    applied.iter().map(String::as_str).filter(|name| name.starts_with(key)).collect()
}

pub(crate) const ALL_OF_A: [&str; 5] = ["a0", "a1", "a2", "a3", "a4"];
pub(crate) const ALL_OF_B: [&str; 5] = ["b0", "b1", "b2", "b3", "b4"];
