"""The Proximal Data Accelerator: from ids to one packed buffer.

pipeline      the way of a request; the only part the rest of FLAME calls, with `store.open_store` and `validate`
assemble      request and user record to packed records      staging      reused, page-locked buffers
modes         item rows: direct, waiting, or never waiting   fingerprint  what an encoded history depends on
cache         item rows in flat memory                       fetch        one query of the store
refresh       background fetches                             rows         feature values to words
store         where features come from                       importer     Parquet and CSV to a file store
kernels       compiled loops                                 numa, memory, id_index, mapping
"""
