//! A device that does nothing, for measuring everything else.

use super::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Kind, Limits, Request, Token, scatter,
};
use crate::error::Result;

/// How a null device behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullOptions {
    /// Reads fill their buffers with zeroes; without it they leave the buffers as they are.
    pub read_zeroes: bool,
    /// Says that it is unallocated everywhere; without it, that it is data everywhere.
    pub unallocated: bool,
}

/// Succeeds at once at everything; what is written is gone.
#[derive(Debug)]
pub struct Null {
    options: NullOptions,
    completions: Completions,
}

impl Null {
    /// A null device of `length` bytes.
    pub fn device(length: u64, limits: Limits, options: NullOptions) -> Result<Device> {
        Device::new(length, limits, |completions| Ok(Self { options, completions }))
    }
}

impl Backend for Null {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        match request.kind {
            Kind::Read if self.options.read_zeroes => {
                static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
                let mut at = 0;
                while at < request.range.len() {
                    let length = (request.range.len() - at).min(ZEROES.len() as u64);
                    scatter(request.iov, at, &ZEROES[..length as usize]);
                    at += length;
                }
            }
            Kind::Extents => {
                let flags = if self.options.unallocated { ExtentFlags::HOLE } else { ExtentFlags::DATA };
                // A request that was given up meanwhile needs no answer.
                let _ = self.completions.extent(token, Extent { length: request.range.len(), flags });
            }
            _ => {}
        }
        Answer::Done(Ok(()))
    }

    fn supports(&self, kind: Kind) -> bool {
        kind != Kind::Extents || self.options.unallocated
    }

    fn has_poll(&self) -> bool {
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::Flags;
    use crate::device::testing::TestClient;
    use crate::range::ByteRange;

    fn device(options: NullOptions) -> Device {
        Null::device(1 << 20, Limits::default(), options).expect("a device")
    }

    #[test]
    fn everything_succeeds_and_is_forgotten() {
        let options = NullOptions { read_zeroes: true, unallocated: false };
        let client = TestClient::new(&device(options)).with_segments(1000);
        let range = ByteRange::between(0, 1 << 20);
        assert_eq!(client.write(0, &[7; 1 << 20]), Ok(()));
        assert_eq!(client.zero(range, Flags::default()), Ok(()));
        assert_eq!(client.discard(range), Ok(()));
        assert_eq!(client.flush(), Ok(()));
        assert_eq!(client.truncate(2 << 20), Ok(()));
        assert_eq!(client.read_vec(1, 200_001), [0; 200_001]);
    }

    #[test]
    fn buffers_are_left_alone_unless_zeroes_are_asked_for() {
        let client = TestClient::new(&device(NullOptions::default()));
        // What the client's buffers are filled with.
        assert_eq!(client.read_vec(0, 512), [0xee; 512]);
    }

    #[test]
    fn it_is_all_data_or_all_hole() {
        for (unallocated, flags) in [(false, ExtentFlags::DATA), (true, ExtentFlags::HOLE)] {
            let device = device(NullOptions { read_zeroes: true, unallocated });
            assert_eq!(device.supports(Kind::Extents), unallocated);
            let told = TestClient::new(&device).extents(ByteRange::between(512, 4096));
            assert_eq!(told, Ok(vec![Extent { length: 3584, flags }]));
        }
    }
}
