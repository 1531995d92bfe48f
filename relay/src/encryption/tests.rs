use backstop_core::Envelope;
use backstop_core::ledger::LetterStatus;

use super::*;

/// 32 bytes that are all the same.
fn key(byte: u8) -> Key {
    Key::parse(&format!("{byte:02x}").repeat(32)).expect("32 bytes")
}

fn ring(bytes: &[u8]) -> Keyring {
    Keyring { keys: bytes.iter().map(|byte| key(*byte)).collect() }
}

fn letter(body: Option<&[u8]>) -> Letter {
    let envelope = Envelope { body: body.map(Bytes::copy_from_slice), ..Envelope::default() };
    let mut letter = Letter::new("6d1b25c8-52f1-4f0e-9c4b-7f6a3f0c8b11", "orders.stock.dlq", envelope);
    letter.message_key = Some("/orders|7".to_owned());
    letter
}

fn sealed(keys: &Keyring, body: &[u8]) -> Letter {
    let mut letter = letter(Some(body));
    keys.seal(&mut letter);
    letter
}

/// What the body is, or why it cannot be had; in that case the letter must stay as it is.
fn opened(keys: &Keyring, letter: &Letter) -> Result<Option<Bytes>, Locked> {
    let mut open = letter.clone();
    let opened = keys.open(&mut open);
    assert!(opened.is_ok() || open == *letter, "it cannot be had, and is another one now");
    opened.map(|()| open.envelope.body)
}

fn stored(letter: &Letter) -> &Bytes {
    letter.envelope.body.as_ref().expect("a body")
}

const BODY: &[u8] = b"{\"card\":\"4111-1111\"}";

#[test]
fn every_body_comes_back_byte_for_byte() {
    let looks_stored = stored(&sealed(&ring(&[9]), BODY)).clone();
    let bodies: [&[u8]; 7] =
        [b"", b"x", BODY, &[0xff, 0, 0x80], b"\0backstop-sealed", b"\0backstop-sealed\x01", &looks_stored];
    for keys in [Keyring::default(), ring(&[1]), ring(&[2, 1])] {
        for body in bodies {
            let letter = sealed(&keys, body);
            assert_eq!(opened(&keys, &letter), Ok(Some(Bytes::copy_from_slice(body))), "{body:?}");
            assert_eq!((size_of(&letter), key_of(&letter)), (Some(body.len()), keys.newest()));
            assert_eq!(keys.locked(&letter), None);
        }
        let mut tombstone = letter(None);
        keys.seal(&mut tombstone);
        assert_eq!((opened(&keys, &tombstone), size_of(&tombstone)), (Ok(None), None));
    }
    let large = vec![7; 3 << 20];
    assert_eq!(opened(&ring(&[1]), &sealed(&ring(&[1]), &large)), Ok(Some(large.into())));
}

#[test]
fn what_is_stored_tells_nothing_of_the_body_and_is_never_the_same() {
    let keys = ring(&[1]);
    let (one, other) = (sealed(&keys, BODY), sealed(&keys, BODY));
    assert_ne!(one, other, "each has a nonce of its own");
    for part in BODY.windows(4) {
        assert!(!stored(&one).windows(4).any(|window| window == part), "{:?}", stored(&one));
    }
    assert_eq!(stored(&sealed(&Keyring::default(), BODY)), BODY, "in clear, without keys");
}

/// Made by another implementation of XChaCha20-Poly1305, from what is written about the format: it opens in every version.
#[test]
fn what_was_stored_once_opens_for_ever() {
    let stored = "006261636b73746f702d7365616c6564019323404720701012000102030405060708090a0b0c0d0e0f1011121314151617\
                  03f2b8e4eff5f5b2c1725b79251f4781c487beb3dab2001c248595c1dd0f5143062c7643";
    let byte = |at: usize| u8::from_str_radix(&stored[at..at + 2], 16).expect("digits");
    let stored: Vec<u8> = (0..stored.len()).step_by(2).map(byte).collect();
    assert_eq!(opened(&ring(&[1]), &letter(Some(&stored))), Ok(Some(Bytes::from_static(BODY))));
}

/// Letters that were stored in clear, before there was a key, stay readable among encrypted ones.
#[test]
fn clear_and_encrypted_letters_stand_side_by_side() {
    let keys = ring(&[1]);
    for letter in [letter(Some(BODY)), sealed(&keys, BODY), sealed(&Keyring::default(), BODY)] {
        assert_eq!(opened(&keys, &letter), Ok(Some(Bytes::from_static(BODY))));
    }
}

#[test]
fn without_its_key_a_letter_is_locked_and_says_which_one_it_needs() {
    let (letter, id) = (sealed(&ring(&[1]), BODY), key(1).id());
    for keys in [Keyring::default(), ring(&[2]), ring(&[2, 3])] {
        let locked = Locked::NoKey(id);
        assert_eq!(opened(&keys, &letter), Err(locked.clone()));
        assert_eq!(keys.renewed(&letter), Err(locked.clone()));
        assert_eq!(keys.locked(&letter), Some(locked));
    }
    let what = Locked::NoKey(id).to_string();
    assert_eq!(what, format!("its body is encrypted with key {id}, which is not configured"));
    assert_eq!(id.to_string().len(), 16);
}

#[test]
fn a_wrong_key_of_the_right_name_opens_nothing() {
    let letter = sealed(&ring(&[1]), BODY);
    let Stored::Sealed(sealed) = Stored::read(stored(&letter)) else { panic!("it is encrypted") };
    assert_eq!(sealed.open(&key(2), &identity_of(&letter)), None);
    assert_eq!(sealed.open(&key(1), &identity_of(&letter)), Some(Bytes::from_static(BODY)));
}

#[test]
fn a_ciphertext_opens_beside_its_own_letter_only() {
    let keys = ring(&[1]);
    let original = sealed(&keys, BODY);
    let moved = |change: fn(&mut Letter)| {
        let mut moved = original.clone();
        change(&mut moved);
        opened(&keys, &moved)
    };
    let others: [fn(&mut Letter); 5] = [
        |letter| letter.id = "other".to_owned(),
        |letter| letter.found_in = "payments.dlq".to_owned(),
        |letter| letter.message_key = Some("/orders|8".to_owned()),
        |letter| letter.message_key = None,
        // The same bytes, divided in another place.
        |letter| letter.id.push(letter.found_in.remove(0)),
    ];
    for change in others {
        assert_eq!(moved(change), Err(Locked::Damaged));
    }
    assert_eq!(moved(|letter| letter.status = LetterStatus::Resolved), Ok(Some(BODY.into())));
    assert_eq!(moved(|letter| letter.hold = Some("case 7".to_owned())), Ok(Some(BODY.into())));
}

/// Behind the mark every bit counts: the format, the key's id, the nonce, the ciphertext and its tag. Without the mark it
/// is a body in clear, and not the one that was encrypted.
#[test]
fn a_flipped_bit_or_a_missing_byte_is_found_out() {
    let keys = ring(&[1]);
    let letter = sealed(&keys, BODY);
    let whole = stored(&letter).to_vec();
    let with = |bytes: Vec<u8>| {
        let mut changed = letter.clone();
        changed.envelope.body = Some(bytes.into());
        opened(&keys, &changed)
    };
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match with(bytes.clone()) {
            Err(_) => {}
            Ok(body) => assert_eq!((bit / 8 < 16, body), (true, Some(bytes.into())), "bit {bit}"),
        }
    }
    for length in 16..whole.len() {
        assert!(with(whole[..length].to_vec()).is_err(), "{length} bytes");
    }
    assert_eq!(with(whole), Ok(Some(Bytes::from_static(BODY))));
}

#[test]
fn keys_are_rotated_and_old_letters_moved_to_the_new_one() {
    let (old, both, new) = (ring(&[1]), ring(&[2, 1]), ring(&[2]));
    for mut letter in [sealed(&old, BODY), sealed(&Keyring::default(), BODY)] {
        assert_eq!(opened(&both, &letter), Ok(Some(Bytes::from_static(BODY))));
        let renewed = both.renewed(&letter).expect("it opens").expect("there is something to do");
        letter.envelope.body = Some(renewed);
        assert_eq!(key_of(&letter), new.newest());
        assert_eq!(opened(&new, &letter), Ok(Some(Bytes::from_static(BODY))), "the old key may go");
        assert_eq!(both.renewed(&letter), Ok(None), "there is nothing more to do");
    }
    assert_eq!(both.renewed(&letter(None)), Ok(None));
    assert_eq!(Keyring::default().renewed(&letter(Some(BODY))), Ok(None));
    assert_eq!(key_of(&sealed(&both, BODY)), new.newest(), "new letters have the first key");
}

/// PostgreSQL keeps long ids by their hash, and U+FFFD for NULs: a letter opens as it comes back.
#[test]
fn a_letter_opens_as_every_database_gives_it_back() {
    let keys = ring(&[1]);
    for id in ["a\0b".to_owned(), "x".repeat(1_000)] {
        let mut letter = letter(Some(BODY));
        letter.id = id;
        letter.found_in = "orders\0dlq".to_owned();
        letter.message_key = Some("/orders|\0".to_owned());
        keys.seal(&mut letter);
        let mut read = letter.clone();
        read.id = identity::storable(letter.id.as_bytes()).into_owned();
        read.found_in = "orders\u{fffd}dlq".to_owned();
        read.message_key = Some("/orders|\u{fffd}".to_owned());
        for letter in [letter, read] {
            assert_eq!(opened(&keys, &letter), Ok(Some(Bytes::from_static(BODY))));
        }
    }
}

#[test]
fn a_later_format_is_told_as_such() {
    let mut letter = letter(Some(b"\0backstop-sealed\x02whatever"));
    let keys = ring(&[1]);
    assert_eq!(keys.locked(&letter), Some(Locked::Format(2)));
    assert_eq!(keys.open(&mut letter), Err(Locked::Format(2)));
}

#[test]
fn keys_are_read_in_any_spelling_and_never_shown() {
    let hex = "fbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfbfb";
    let base64 = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
    let key = Key::parse(hex).expect("32 bytes");
    for text in [base64, &base64[..43], &base64.replace('+', "-").replace('/', "_"), &format!(" {base64}\n")]
    {
        assert_eq!(Key::parse(text), Some(key.clone()), "{text}");
    }
    for text in
        ["", "hunter2", &hex[2..], &format!("{hex}fb"), &hex.replace('f', "g"), &"é".repeat(32), &base64[4..]]
    {
        assert_eq!(Key::parse(text), None, "{text}");
    }
    let base64 = Key::parse(base64).expect("32 bytes");
    let config = EncryptionConfig { key: key.clone(), previous_keys: vec![base64] };
    let shown = format!("{config:?} {:?} {}", Keyring::of(Some(&config)), serde_json::json!(config));
    assert!(!shown.contains("fbfbfb") && !shown.contains("+/v7"), "{shown}");
    assert!(shown.contains("***") && shown.contains(&key.id().to_string()), "{shown}");
}
