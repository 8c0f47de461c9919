// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program on its way from the host: what was announced, how much of it came, and whether it is what was announced.
//!
//! Its bytes go into memory that root alone has, so they are summed up as they come.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use trellis_idl::control::{Name, Offer, Proof, Refused, statement};
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::SwapPlan;

/// A program on its way.
#[derive(Clone)]
pub struct Upload {
    offer: Offer,
    came: u32,
    sum: Sha256,
}

impl core::fmt::Debug for Upload {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Upload").field("offer", &self.offer).field("came", &self.came).finish_non_exhaustive()
    }
}

impl Upload {
    /// One that begins, if there is room for it.
    pub fn begin(offer: Offer, swap: &SwapPlan) -> Result<Upload, Refused> {
        let most = u64::from(swap.pages) * PAGE;
        if u64::from(offer.bytes) > most {
            return Err(Refused::TooLarge(most as u32));
        }
        Ok(Upload { offer, came: 0, sum: Sha256::new() })
    }

    /// Whose place it shall take.
    pub fn monitor(&self) -> &Name {
        &self.offer.monitor
    }

    /// Bytes of the whole.
    pub fn bytes(&self) -> u32 {
        self.offer.bytes
    }

    /// It begins without what the old one knows.
    pub fn is_fresh(&self) -> bool {
        self.offer.is_fresh
    }

    /// The number that it has from whoever signed it.
    pub fn counter(&self) -> u64 {
        self.offer.proof.as_ref().map_or(0, |proof| proof.counter)
    }

    /// Bytes came, for this place. Refused: they are not the next ones, or more than was announced.
    pub fn take(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
        let end = u32::try_from(bytes.len()).ok().and_then(|length| offset.checked_add(length));
        let end = end.filter(|end| *end <= self.offer.bytes && offset == self.came).ok_or(Refused::CutOff(self.came))?;
        self.sum.update(bytes);
        self.came = end;
        Ok(())
    }

    /// Whether it is whole, what was announced, signed by whom it must be, and not older than it may be.
    pub fn verify(&self, swap: &SwapPlan, lowest: u64) -> Result<(), Refused> {
        if self.came != self.offer.bytes {
            return Err(Refused::CutOff(self.came));
        }
        let sum: [u8; 32] = self.sum.clone().finalize().into();
        if sum != self.offer.digest {
            return Err(Refused::Digest);
        }
        let Some(signer) = &swap.signer else { return Ok(()) };
        let proof = self.offer.proof.as_ref().ok_or(Refused::Signature)?;
        check(signer, proof, &sum)?;
        // Only of what is signed does a number mean anything.
        if proof.counter < lowest { Err(Refused::Older(lowest)) } else { Ok(()) }
    }
}

// Out of line: it takes much of the stack.
#[inline(never)]
fn check(signer: &[u8; 32], proof: &Proof, sum: &[u8; 32]) -> Result<(), Refused> {
    let key = VerifyingKey::from_bytes(signer).map_err(|_| Refused::Signature)?;
    let [first, second] = proof.signature;
    let signature = Signature::from_components(first, second);
    key.verify_strict(&statement(proof.counter, sum), &signature).map_err(|_| Refused::Signature)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    pub const SWAP: SwapPlan = SwapPlan { pages: 4, signer: None, counter: 0 };

    /// What is announced of a file.
    pub fn offer(monitor: &str, file: &[u8]) -> Offer {
        let monitor = Name::try_from(monitor).expect("a short name");
        Offer { monitor, bytes: file.len() as u32, digest: Sha256::digest(file).into(), proof: None, is_fresh: false }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    /// The same, signed.
    pub fn signed(monitor: &str, file: &[u8], counter: u64) -> Offer {
        let mut offer = offer(monitor, file);
        let signature = key().sign(&statement(counter, &offer.digest));
        offer.proof = Some(Proof { counter, signature: [*signature.r_bytes(), *signature.s_bytes()] });
        offer
    }

    /// A manifest that demands it.
    pub fn demands(counter: u64) -> SwapPlan {
        SwapPlan { signer: Some(key().verifying_key().to_bytes()), counter, ..SWAP }
    }

    fn whole(offer: Offer, swap: &SwapPlan, file: &[u8]) -> Upload {
        let mut upload = Upload::begin(offer, swap).expect("there is room");
        for (index, piece) in file.chunks(100).enumerate() {
            upload.take(100 * index as u32, piece).expect("the next bytes");
        }
        upload
    }

    #[test]
    fn what_came_whole_and_is_what_was_announced_is_taken() {
        let file = [5; 1234];
        assert_eq!(whole(offer("m", &file), &SWAP, &file).verify(&SWAP, 0), Ok(()));
        assert_eq!(whole(offer("m", &[]), &SWAP, &[]).verify(&SWAP, 0), Ok(()), "that it is no program is seen later");
        let mut other = offer("m", &file);
        other.digest[31] ^= 1;
        assert_eq!(whole(other, &SWAP, &file).verify(&SWAP, 0), Err(Refused::Digest));
        assert_eq!(whole(offer("m", &file), &SWAP, &file[..1200]).verify(&SWAP, 0), Err(Refused::CutOff(1200)));
        assert_eq!(Upload::begin(offer("m", &[0; 4 * 4096 + 1]), &SWAP).err(), Some(Refused::TooLarge(4 * 4096)));
    }

    #[test]
    fn pieces_come_in_their_order_and_no_more_of_them_than_was_announced() {
        let mut upload = Upload::begin(offer("m", &[1; 20]), &SWAP).expect("there is room");
        assert_eq!(upload.take(0, &[1; 10]), Ok(()));
        for (offset, bytes) in [(0, 10), (9, 10), (11, 5), (10, 11), (u32::MAX, 5)] {
            assert_eq!(upload.take(offset, &vec![1; bytes]), Err(Refused::CutOff(10)), "{offset}");
        }
        assert_eq!(upload.take(10, &[1; 10]), Ok(()), "what was refused changed nothing");
        assert_eq!(upload.verify(&SWAP, 0), Ok(()));
    }

    #[test]
    fn where_the_manifest_demands_it_only_what_is_signed_and_not_older_is_taken() {
        let (file, swap) = ([9; 300], demands(3));
        let verify = |offer: Offer, lowest| whole(offer, &swap, &file).verify(&swap, lowest);
        assert_eq!(verify(signed("m", &file, 3), 3), Ok(()));
        assert_eq!(verify(signed("m", &file, 9), 4), Ok(()));
        assert_eq!(verify(signed("m", &file, 2), 3), Err(Refused::Older(3)));
        assert_eq!(verify(offer("m", &file), 0), Err(Refused::Signature), "not signed");
        let spoil = |spoil: fn(&mut Proof)| {
            let mut offer = signed("m", &file, 3);
            spoil(offer.proof.as_mut().expect("it is signed"));
            verify(offer, 3)
        };
        assert_eq!(spoil(|proof| proof.counter = 4), Err(Refused::Signature), "another number than was signed");
        assert_eq!(spoil(|proof| proof.signature[0][0] ^= 1), Err(Refused::Signature));
        assert_eq!(spoil(|proof| proof.signature[1] = [0xff; 32]), Err(Refused::Signature));
        let other = signed("m", &[8; 300], 3);
        assert_eq!(verify(Offer { proof: other.proof, ..offer("m", &file) }, 3), Err(Refused::Signature), "another's signature");
        let nobody = SwapPlan { signer: Some([0xff; 32]), ..swap };
        assert_eq!(whole(signed("m", &file, 3), &nobody, &file).verify(&nobody, 0), Err(Refused::Signature), "a key that is none");
    }
}
