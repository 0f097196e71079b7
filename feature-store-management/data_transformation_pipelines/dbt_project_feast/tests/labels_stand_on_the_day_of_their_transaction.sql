-- A label whose day is not its transaction's would be joined in a full build and missed in an incremental one.
select
    labels.transaction_id,
    labels.tx_date as label_date,
    transactions.tx_date as transaction_date
from {{ ref('stg_transaction_labels') }} as labels
inner join {{ ref('stg_transactions') }} as transactions using (transaction_id)
where labels.tx_date <> transactions.tx_date
