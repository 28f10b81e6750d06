"""The secure sum: the server learns the sum over the sites and nothing about one of them.

Double masking with threshold secret sharing, after [1] (section 6 and figure 4, the variant against an active server).
The package is the protocol as two state machines without a network, a disk or a clock; `client/secure_session.py` and
`server/secure_release.py` carry it.

    stage           the server sends                     a site replies
    ADVERTISE       the terms of the release             two fresh X25519 keys, signed with its identity key
    SHARE           everybody's signed keys              Shamir shares of its mask key and of its seed, sealed for each
    INPUT           the shares sealed for this site      its integers + mask of the seed +- masks with every other site
    CONSISTENCY     who sent an input                    its signature under that list
    UNMASK          the signatures                       a share of the *seed* of each site on the list, and of the
                                                         *mask key* of each that dropped out; never both for one site

Reading order: `terms` (what is agreed beforehand, and the numbers), `shamir`, `keys`, `masks`, `room` (no overflow),
`messages` (what crosses), `site` and `coordinator` (the two sides).

References:
    [1] Bonawitz et al.: Practical secure aggregation for privacy-preserving machine learning. CCS 2017.
    [2] Shamir: How to share a secret. CACM 1979.
    [3] Nir, Langley: ChaCha20 and Poly1305 for IETF protocols. RFC 8439. Langley et al.: RFC 7748 (X25519). Josefsson,
        Liusvaara: RFC 8032 (Ed25519). Krawczyk, Eronen: RFC 5869 (HKDF).
"""
